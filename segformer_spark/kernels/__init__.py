"""Operations written for GPUs, each beside its formula in plain torch."""
