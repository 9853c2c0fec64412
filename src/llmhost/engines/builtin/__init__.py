"""The built-in models, the texts they were trained on, and the script that trained them."""
