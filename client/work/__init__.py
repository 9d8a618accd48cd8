"""A judged request becomes an answer: figures, or a round of training.

May enter: `Judged` requests alone. Whether something is allowed is not asked here: what can be told only while it is
worked on was handed down with the request.
"""
