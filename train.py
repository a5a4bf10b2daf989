"""``python train.py fit|validate|test|predict --config ...``: the command line, from a checkout."""

from lightning_dterm.cli import main

if __name__ == "__main__":
    main()
