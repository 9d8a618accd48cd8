"""What a site keeps on its own disk between messages, and a file that can only be added to.

May enter: tensors and lines that are meant to stay here. Nothing of it is ever sent.
"""
