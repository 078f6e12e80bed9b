"""What was learnt from a document: the recipe, the memory as a value, its compressed forms and its file."""
