"""From the heads' descriptors to the master's, on its directories, and kept there.

In: what heads tell of themselves (`intake`, `shelf`), what the consensus says (`network`), who signs (`keys`). Out: the
master address's descriptors, uploaded (`publisher`), read back and given again (`repair`), visited (`canary`).
"""
