"""Operations on tensors that several packages share."""
