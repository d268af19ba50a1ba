"""Rows of one series -> answers, each with its uncertainty, its method and its source; "cannot tell" is one of them."""
