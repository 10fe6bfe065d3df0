/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * `_calls`: the two calls an application's own loop makes for each batch, without what cffi does around every call (each
 * argument converted by its type, errno kept, Python's lock given up). A second module in the same library: see __init__.py.
 *
 * Pools, tables and descriptors come as addresses. Who calls has checked what they are and keeps them: pool.py, nobody else.
 *
 * Python's lock is kept only where the pool takes no lock of its own and calls no hook: else a thread that waits here for the
 * table's lock could hold what a hook under that lock waits for.
 */
#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "pool.h"

struct arguments {
	void *where;
	struct afp_desc *descs;
	uint32_t n;
};

static int arguments_read(struct arguments *a, PyObject *const *args, Py_ssize_t nargs)
{
	unsigned long n;

	if (nargs != 3) {
		PyErr_SetString(PyExc_TypeError, "three arguments are needed");
		return -1;
	}
	a->where = PyLong_AsVoidPtr(args[0]);
	a->descs = PyLong_AsVoidPtr(args[1]);
	n = PyLong_AsUnsignedLong(args[2]);
	if (unlikely(!a->where || !a->descs || n > INT32_MAX)) {
		if (!PyErr_Occurred())
			PyErr_SetString(PyExc_ValueError, "no address, or too many descriptors");
		return -1;
	}
	a->n = (uint32_t)n;
	return 0;
}

/* alloc(pool, descs, n): as afp_pool_alloc(). */
static PyObject *call_alloc(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
	struct arguments a;
	struct afp_pool *p;
	int got;

	(void)module;
	if (unlikely(arguments_read(&a, args, nargs)))
		return NULL;
	p = a.where;
	if (likely(owned_by(p, afp_self()) && a.n <= p->ncache)) {
		got = afp_pool_alloc(p, a.descs, a.n);
	} else {
		PyThreadState *state = PyEval_SaveThread();

		got = afp_pool_alloc(p, a.descs, a.n);
		PyEval_RestoreThread(state);
	}
	return PyLong_FromLong(got);
}

/* put(table, descs, n): as afp_put_all(). */
static PyObject *call_put(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
	struct arguments a;
	uint32_t done, refused = 0;

	(void)module;
	if (unlikely(arguments_read(&a, args, nargs)))
		return NULL;
	done = afp_put_cached(a.where, a.descs, a.n);
	if (unlikely(done < a.n)) {
		PyThreadState *state = PyEval_SaveThread();

		refused = afp_put_rest(a.where, a.descs, done, a.n);
		PyEval_RestoreThread(state);
	}
	return PyLong_FromUnsignedLong(refused);
}

static PyMethodDef methods[] = {
	{"alloc", (PyCFunction)(void (*)(void))call_alloc, METH_FASTCALL, "alloc(pool, descs, n): how many it got, or why none"},
	{"put", (PyCFunction)(void (*)(void))call_put, METH_FASTCALL, "put(table, descs, n): how many were refused"},
	{NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_calls", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit__calls(void)
{
	return PyModuleDef_Init(&module);
}
