"""``python3 -B -m kmt_guest``: open the channel to the host and serve it until the host says goodbye."""

from .agent import main

raise SystemExit(main())
