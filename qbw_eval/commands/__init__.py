"""What each word of `qbw-eval` does: files, devices, clocks and printing meet the functions here."""
