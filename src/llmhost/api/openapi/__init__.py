"""The description of all routes as one OpenAPI document, made of the structs that parse and of those that answer.

`operation` is what a module says of its routes, `document` puts all of them together and `route` serves it. What
litestar serves it describes itself; plain ASGI routes are described by an `Operation` in `operations`.
"""
