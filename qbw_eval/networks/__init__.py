"""Networks that QBW trains and evaluates itself."""
