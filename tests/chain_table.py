"""The fallback chain's truth table, written out by hand: the code is compared with this and not with itself."""

TABLE = {
    "1111": "CRP",
    "1110": "CR",
    "1101": "CRP",
    "1100": "C",
    "1011": "CRP",
    "1010": "CR",
    "1001": "CP",
    "1000": "C",
    "0111": "RP",
    "0110": "R",
    "0101": "RP",
    "0100": "R",
    "0011": "P",
    "0010": "P",
    "0001": "P",
    "0000": "P",
}
"""Settings: CO-RE, runtime compiler, allow runtime, allow prebuilt. Then the stages tried while each fails."""
WORDS = {"C": "co-re load failed: ", "R": "runtime compilation failed: ", "P": ""}
"""What the error of the last stage begins with."""
