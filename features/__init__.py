"""What the business knows, as arrays and tables; everything "as of" a moment."""
