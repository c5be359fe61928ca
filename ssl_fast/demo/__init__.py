"""`ssl-fast demo`: a page for the browser that localizes sounds in images."""
