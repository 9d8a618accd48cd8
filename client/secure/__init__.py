"""The summed way to answer: keys and peers of this site, and its part in a secure sum.

May enter: the step that a message asks for, and an answer whose tensors are to be masked.
"""
