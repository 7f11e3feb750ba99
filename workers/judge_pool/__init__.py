"""The pool of judges that Ray places: `farm judge`.

Everything here but `orders` runs under the interpreter that the Ray cluster requires. It needs only the standard
library and bare `ray`, no package of the farm; the judge servers that it starts run in environments of their own.
"""
