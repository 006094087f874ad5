"""Jobs and nodes: what training needs of a cluster, checked, staged and asked for again."""
