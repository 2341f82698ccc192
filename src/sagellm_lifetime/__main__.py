"""``python -m sagellm_lifetime COMMAND …``: the command line without the installed script."""

from sagellm_lifetime.cli.main import main

if __name__ == "__main__":
    main()
