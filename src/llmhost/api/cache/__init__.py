"""The response cache for operators: what it holds, what it saves, what it has learnt, and how it is made to forget."""
