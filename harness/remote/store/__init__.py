"""What an agent keeps for those who poll it: two TUF repositories that must agree, and the files that both list.

The *director* says who gets which file, the *config* repository which files exist; a backend that holds the keys of
one alone can send nothing (uptane). ``repository`` follows one of them, ``uptane`` compares the two, ``database`` is
where they are kept, ``agent`` ties them together.
"""
