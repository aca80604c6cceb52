"""Rows of texts and chats as tokens and labels."""
