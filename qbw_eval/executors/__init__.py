"""Where tasks run: one seam, and what is behind it."""
