"""Tool calls and thoughts in the text of an answer, each model family's own way of writing them."""
