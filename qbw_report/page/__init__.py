"""The report's page: one HTML file that needs nothing else; the answers first, then the pictures they come from."""
