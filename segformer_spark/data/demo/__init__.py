"""Renders a SPARK-shaped data set, so that the whole way can be tried without the real one."""
