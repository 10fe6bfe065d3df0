/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * `_calls`: what an application's own loop does for each batch, without what cffi does around every call (each argument
 * converted by its type, errno kept, Python's lock given up). A second module in the same library: see __init__.py.
 *
 * `Descs` and `Pool` are what `Batch` and `FramePool` inherit from: the few facts the quick ways need, as C reads them. A quick
 * way does the common case whole, or nothing, and says so: the methods of pool.py then do the rest, and know every error.
 *
 * Python's lock is kept only where the pool takes no lock of its own and calls no hook: else a thread that waits here for the
 * table's lock could hold what a hook under that lock waits for. A hook itself gets nothing done: pool.py refuses it.
 */
#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include "pool.h"

/* Descriptors that stay where they are ------------------------------------------------------------------------------- */

struct descs {
	PyObject_HEAD
	Py_ssize_t count; /* as the batch was made */
	PyObject *data;   /* the Umem's memory, which says whose they are */
	Py_buffer held; /* of the array; `buf` is NULL while it is not known that the descriptors stay */
};

static PyTypeObject *descs_type;

static int descs_traverse(PyObject *self, visitproc visit, void *arg)
{
	struct descs *d = (struct descs *)self;

	Py_VISIT(d->data);
	Py_VISIT(d->held.obj);
	Py_VISIT(Py_TYPE(self));
	return 0;
}

static int descs_clear(PyObject *self)
{
	struct descs *d = (struct descs *)self;

	Py_CLEAR(d->data);
	PyBuffer_Release(&d->held);
	d->held.buf = NULL;
	return 0;
}

static void object_free(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	release(self);
	Py_DECREF(type);
}

static void descs_dealloc(PyObject *self)
{
	PyObject_GC_UnTrack(self);
	descs_clear(self);
	object_free(self);
}

/* hold(array): its items are descriptors, which lie one behind the other, may be written, and stay. False: they may not. */
static PyObject *descs_hold(PyObject *self, PyObject *array)
{
	struct descs *d = (struct descs *)self;
	Py_buffer held;

	if (PyObject_GetBuffer(array, &held, PyBUF_WRITABLE)) {
		PyErr_Clear();
		Py_RETURN_FALSE;
	}
	if (d->count < 0 || d->count > INT32_MAX || held.len != d->count * (Py_ssize_t)sizeof(struct afp_desc)) {
		PyBuffer_Release(&held);
		PyErr_SetString(PyExc_ValueError, "not as many descriptors as the batch has");
		return NULL;
	}
	PyBuffer_Release(&d->held);
	d->held = held;
	Py_RETURN_TRUE;
}

static PyMethodDef descs_methods[] = {
	{"_hold", descs_hold, METH_O, NULL},
	{NULL, NULL, 0, NULL},
};
static PyMemberDef descs_members[] = {
	{"_count", T_PYSSIZET, offsetof(struct descs, count), 0, NULL},
	{"data", T_OBJECT_EX, offsetof(struct descs, data), 0, NULL},
	{NULL, 0, 0, 0, NULL},
};
static PyType_Slot descs_slots[] = {
	{Py_tp_methods, descs_methods}, {Py_tp_members, descs_members}, {Py_tp_traverse, descs_traverse},
	{Py_tp_clear, descs_clear},     {Py_tp_dealloc, descs_dealloc}, {0, NULL},
};
static PyType_Spec descs_spec = {
	.name = "afxdp_pool._native._calls.Descs",
	.basicsize = sizeof(struct descs),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
	.slots = descs_slots,
};

/* The pool ------------------------------------------------------------------------------------------------------------ */

struct pool {
	PyObject_HEAD
	struct afp_pool *pool;   /* NULL: closed, or its callers must look at each allocation */
	struct afp_table *table; /* NULL: the Umem is closed */
	PyObject *data;
};

/* The descriptors that `object` is, if the quick ways can take it, of this pool's Umem. */
static struct descs *descs_of(const struct pool *p, PyObject *object)
{
	struct descs *d = (struct descs *)object;

	if (unlikely(!PyObject_TypeCheck(object, descs_type)))
		return NULL;
	return likely(d->held.buf && d->data == p->data) ? d : NULL;
}

static uint32_t descs_count(const struct descs *d)
{
	return (uint32_t)(d->held.len / (Py_ssize_t)sizeof(struct afp_desc));
}

/* alloc(n, out): how many it got, or why none; None: not done. */
static PyObject *pool_alloc(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
	struct pool *p = (struct pool *)self;
	struct descs *d;
	Py_ssize_t n;
	int got;

	if (unlikely(nargs != 2)) {
		PyErr_SetString(PyExc_TypeError, "two arguments are needed");
		return NULL;
	}
	d = descs_of(p, args[1]);
	if (unlikely(!d || !p->pool))
		Py_RETURN_NONE;
	n = PyLong_AsSsize_t(args[0]);
	if (unlikely(n != (Py_ssize_t)descs_count(d))) {
		PyErr_Clear();
		Py_RETURN_NONE;
	}
	if (likely(owned_by(p->pool, afp_self()) && (uint32_t)n <= p->pool->ncache)) {
		got = afp_pool_alloc(p->pool, d->held.buf, (uint32_t)n);
	} else {
		PyThreadState *state;

		if (unlikely(afp_pool_telling()))
			Py_RETURN_NONE;
		state = PyEval_SaveThread();
		got = afp_pool_alloc(p->pool, d->held.buf, (uint32_t)n);
		PyEval_RestoreThread(state);
	}
	return PyLong_FromLong(got);
}

/* put(batch): how many there were; if some were refused, -1 less how many; -1: not done. */
static PyObject *pool_put(PyObject *self, PyObject *batch)
{
	struct pool *p = (struct pool *)self;
	struct descs *d = descs_of(p, batch);
	uint32_t n, done, refused = 0;

	if (unlikely(!d || !p->table))
		return PyLong_FromLong(-1);
	n = descs_count(d);
	if (unlikely(afp_pool_telling()))
		return PyLong_FromLong(-1);
	done = afp_put_cached(p->table, d->held.buf, n);
	if (unlikely(done < n)) {
		PyThreadState *state = PyEval_SaveThread();

		refused = afp_put_rest(p->table, d->held.buf, done, n);
		PyEval_RestoreThread(state);
	}
	return PyLong_FromLongLong(likely(!refused) ? n : -1 - (long long)refused);
}

/* point(pool, table, data): addresses, 0 for none. Who calls has checked what they are, and keeps them. */
static PyObject *pool_point(PyObject *self, PyObject *args)
{
	struct pool *p = (struct pool *)self;
	unsigned long long pool, table;
	PyObject *data;

	if (!PyArg_ParseTuple(args, "KKO", &pool, &table, &data))
		return NULL;
	p->pool = (struct afp_pool *)(uintptr_t)pool;
	p->table = (struct afp_table *)(uintptr_t)table;
	PyObject *before = p->data;
	p->data = Py_NewRef(data);
	Py_XDECREF(before);
	Py_RETURN_NONE;
}

static int pool_traverse(PyObject *self, visitproc visit, void *arg)
{
	Py_VISIT(((struct pool *)self)->data);
	Py_VISIT(Py_TYPE(self));
	return 0;
}

static int pool_clear(PyObject *self)
{
	Py_CLEAR(((struct pool *)self)->data);
	return 0;
}

static void pool_dealloc(PyObject *self)
{
	PyObject_GC_UnTrack(self);
	pool_clear(self);
	object_free(self);
}

static PyMethodDef pool_methods[] = {
	{"_alloc", (PyCFunction)(void (*)(void))pool_alloc, METH_FASTCALL, NULL},
	{"_put", pool_put, METH_O, NULL},
	{"_point", pool_point, METH_VARARGS, NULL},
	{NULL, NULL, 0, NULL},
};
static PyType_Slot pool_slots[] = {
	{Py_tp_methods, pool_methods}, {Py_tp_traverse, pool_traverse}, {Py_tp_clear, pool_clear},
	{Py_tp_dealloc, pool_dealloc}, {0, NULL},
};
static PyType_Spec pool_spec = {
	.name = "afxdp_pool._native._calls.Pool",
	.basicsize = sizeof(struct pool),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
	.slots = pool_slots,
};

static int module_exec(PyObject *module)
{
	PyObject *pool;

	descs_type = (PyTypeObject *)PyType_FromSpec(&descs_spec);
	pool = PyType_FromSpec(&pool_spec);
	if (!descs_type || !pool || PyModule_AddObjectRef(module, "Descs", (PyObject *)descs_type) ||
	    PyModule_AddObjectRef(module, "Pool", pool))
		return -1;
	Py_DECREF(pool);
	return 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_calls", .m_size = 0, .m_slots = module_slots};

PyMODINIT_FUNC PyInit__calls(void)
{
	return PyModuleDef_Init(&module);
}
