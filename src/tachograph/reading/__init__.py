"""What the query layer is made of: lists, filters, points and edits, over any store."""
