"""Try every vision transformer of timm and write which can be read to attnbootreg/models.json: python tools/models.py

Each is built and run on shapes alone, so no weights are downloaded; a few minutes."""

import json
import sys
import warnings

import timm

from attnbootreg.loading import TABLE, try_timm

ENOUGH = 5  # so many of a family refused, and none read: the others are not tried


def tried(family):
    "Names of a family of timm that can be read, and why the first of the others cannot."
    names, why = [], []
    for name in timm.list_models(module=family):
        try:
            try_timm(name)
            names.append(name)
        except TypeError as error:
            why.append(str(error).removeprefix("model: "))
        if len(why) == ENOUGH and not names:
            break
    return names, why[0] if why else ""


def main():
    warnings.simplefilter("ignore")  # timm's, about names that it has renamed
    names, refused = {}, {}
    for family in timm.list_modules():
        names[family], why = tried(family)
        refused |= {family: why} if why else {}
        print(f"{family}: {len(names[family])} can be read", file=sys.stderr, flush=True)
    table = dict(timm=timm.__version__, names={family: found for family, found in names.items() if found}, refused=refused)
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
