"""Stored chats: kept when they are answered, and listed, read, labelled and deleted afterwards."""
