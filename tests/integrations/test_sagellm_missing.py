"""Missing packages are one line."""

from __future__ import annotations

import subprocess
import sys


def test_without_the_packages_it_is_one_line(tmp_path):
    code = (
        "import sys\n"
        "from importlib import util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name: None if name.startswith('sagellm_kv') else find(name)\n"
        "from sagellm_lifetime.core import extras\n"
        "extras.find_spec = util.find_spec\n"
        "from sagellm_lifetime import LifetimeError\n"
        "try:\n"
        "    from sagellm_lifetime.integrations.sagellm import LifetimeAwareEviction\n"
        "except LifetimeError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=True, cwd=tmp_path)  # fmt: skip
    assert done.stdout == (
        "evicting in sageLLM (isagellm-kv-cache) needs: pip install 'isagellm-lifetime[sagellm]'\n"
    )
