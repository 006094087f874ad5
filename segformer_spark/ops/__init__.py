"""Operations that several rooms share, on tensors alone."""
