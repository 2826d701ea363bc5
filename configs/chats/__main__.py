"""Writes the file."""

from configs.chats import FILE, text

FILE.write_text(text())
