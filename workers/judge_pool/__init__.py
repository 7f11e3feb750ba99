"""The pool of judges that Ray places: `farm judge`.

Everything here but `orders` runs under whatever interpreter the Ray cluster asks for and needs the standard library
and bare `ray` alone, no package of the farm's; the judge servers that it starts run in environments of their own.
"""
