"""How configurations are drawn: counted, numbered and chosen with whole numbers only, the same on every machine."""
