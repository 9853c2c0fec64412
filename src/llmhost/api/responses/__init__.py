"""OpenAI's Responses API: answers made of items, which the server keeps for whoever goes on with them."""
