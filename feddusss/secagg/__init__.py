"""Secure aggregation: the coordinator learns the sum of the sites' vectors, and no site's own.

After Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017), with double
masking, in the variant for an active adversary: keys are signed by keys that sites pinned beforehand, and a site
reveals shares only for a set of survivors that a quorum signed.

    fixedpoint   numbers as integers modulo 2^64
    records      what travels, and what is signed
    curve        numbers and points of P-256
    sharing      shares of secrets that their holders can check, sealed for them
    complaints   a holder's proof that a share is wrong
    masking      key agreement, and masks from key streams
    member       a site's part
    convener     the coordinator's part

Arithmetic and cryptography alone: no Flower, no torch, no file. docs/secure_aggregation.md says what it promises.
"""
