"""Text corpora and chats, prepared once, tokenised, packed and mixed into batches.

Imports text; tasks are one more kind of source (`pipeline.Source`).
"""
