"""Class statistics of masks, their figure and page, and rules for underrepresented classes."""
