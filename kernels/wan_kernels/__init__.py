"""Fast tensor functions, each beside a plain torch reference. Knows no model."""
