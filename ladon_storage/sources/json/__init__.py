"""JSON documents of any size, and the records in them."""
