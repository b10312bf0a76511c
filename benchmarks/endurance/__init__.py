"""What runs survive: random kills, a thousand fits in a row, and every test of a fault."""
