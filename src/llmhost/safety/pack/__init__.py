"""The rules that come with the program: secrets, personal data, and prompts that try to take a model over.

`rule.py` says what a rule is, `pack.py` looks for those that a policy wants. Every rule takes linear time.
"""
