"""The paid way to answer: the ledger of a site's privacy budget, what may leave for it, and the command that shows it.

May enter: a round that is ready to begin. It is paid for whole before its first batch is drawn.
"""
