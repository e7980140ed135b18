"""ronctl: the operator's hand. Each command is a file; `main.py` joins them and maps errors to exit codes."""
