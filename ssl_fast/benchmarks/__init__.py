"""`ssl-fast bench`: the ops beside their references, and the way of the data into training."""
