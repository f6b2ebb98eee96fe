//! What is computed: a kernel with a value for every specialisation parameter and its device functions.

use crate::dsl::{Kernel, Require, SpecParam, SpecValues};
use crate::dtype::DType;
use crate::error::Error;
use crate::lower::{DeviceFunction, FunctionKind};
use crate::value::Value;
use std::sync::Arc;

/// *What* is computed. See the crate documentation for the vocabulary.
#[derive(Debug, Clone)]
pub struct KernelSpec {
    kernel: String,
    declaration: String,
    /// In the declaration's order.
    values: Vec<(String, Value)>,
    /// One for each slot of the declaration.
    functions: Vec<(String, Option<Arc<DeviceFunction>>)>,
    /// What fits each slot.
    kinds: Vec<FunctionKind>,
    /// Parameters with the value they have where none is given.
    defaults: Vec<String>,
}

impl KernelSpec {
    /// A spec of `kernel` with a value for each of its specialisation parameters.
    ///
    /// # Errors
    /// [`Error::Spec`] when a value is missing and has no default, unknown, not among those the declaration allows, or does
    /// not go with the others.
    pub fn new(kernel: &Kernel, values: &[(&str, Value)]) -> Result<Self, Error> {
        let fail = |message: String| Err(Error::Spec { kernel: kernel.name.clone(), message });
        if let Some((unknown, _)) = values.iter().find(|(name, _)| kernel.spec_param(name).is_none()) {
            let known: Vec<&str> = kernel.specialize.iter().map(|param| param.name.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return fail(format!("`{unknown}` is no parameter: it has {known}"));
        }
        let repeated = |at: usize| values[..at].iter().any(|(name, _)| *name == values[at].0);
        if let Some(at) = (1..values.len()).find(|&at| repeated(at)) {
            return fail(format!("`{}` is given twice: give it once", values[at].0));
        }
        let mut chosen: Vec<(String, Value)> = Vec::with_capacity(kernel.specialize.len());
        for param in &kernel.specialize {
            let given = values.iter().find(|(name, _)| *name == param.name).map(|(_, value)| *value);
            let Some(value) = given.or_else(|| default_of(param, &chosen)) else {
                let list = param.values.list();
                return fail(format!("no value for `{}`: give one of {list}", param.name));
            };
            let allowed = match (&param.values, &value) {
                (SpecValues::DTypes(all), Value::DType(dtype)) => all.contains(dtype),
                (SpecValues::Ints(all), Value::Int(int)) => all.contains(int),
                _ => false,
            };
            if !allowed {
                let (name, list) = (&param.name, param.values.list());
                return fail(match (given, &param.default) {
                    (None, Some(default)) => {
                        format!(
                            "{name} = {value}, its default {default}, is not supported: give one of {list}"
                        )
                    }
                    _ => format!("{name} = {value} is not supported: use one of {list}"),
                });
            }
            chosen.push((param.name.clone(), value));
        }
        for Require { condition, message } in kernel.spec_requires() {
            if condition.eval(&|name| int_of(&chosen, name)) != Ok(1) {
                let found =
                    condition.names().into_iter().filter_map(|name| Some((name, int_of(&chosen, name)?)));
                let found: Vec<String> = found.map(|(name, value)| format!("{name} = {value}")).collect();
                return fail(format!("it needs {condition}, found {}: {message}", found.join(", ")));
            }
        }
        let functions = kernel.functions.iter().map(|slot| (slot.name.clone(), None)).collect();
        let kinds = kernel.functions.iter().map(|slot| slot.kind).collect();
        let is_default = |param: &&SpecParam| {
            let value = default_of(param, &chosen);
            value.is_some_and(|value| chosen.contains(&(param.name.clone(), value)))
        };
        let defaults = kernel.specialize.iter().filter(is_default).map(|param| param.name.clone()).collect();
        let (name, declaration) = (kernel.name.clone(), kernel.declaration.clone());
        Ok(KernelSpec { kernel: name, declaration, values: chosen, functions, kinds, defaults })
    }

    /// The same spec with a device function in one of the kernel's slots.
    ///
    /// # Errors
    /// [`Error::Spec`] when the kernel has no such slot, or one for another kind of function.
    pub fn with_function(mut self, slot: &str, function: Arc<DeviceFunction>) -> Result<Self, Error> {
        let Some(at) = self.functions.iter().position(|(name, _)| name == slot) else {
            let message = format!("it calls no device function `{slot}`: declare it in `functions`");
            return Err(Error::Spec { kernel: self.kernel, message });
        };
        let (needed, found) = (self.kinds[at].attribute(), function.kind().attribute());
        if found != needed {
            let message = format!("`{slot}` takes a {needed}, found the {found} `{}`", function.name());
            return Err(Error::Spec { kernel: self.kernel, message });
        }
        self.functions[at].1 = Some(function);
        Ok(self)
    }

    /// The kernel's name.
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// The hash of its declaration: see [`Kernel::declaration`].
    pub fn declaration(&self) -> &str {
        &self.declaration
    }

    /// The specialisation, in the declaration's order.
    pub fn values(&self) -> &[(String, Value)] {
        &self.values
    }

    /// Whether a parameter has the value that it has where none is given: variants' names leave it out.
    pub fn is_default(&self, param: &str) -> bool {
        self.defaults.iter().any(|known| known == param)
    }

    /// The device functions by slot; `None` where the slot is empty.
    pub fn functions(&self) -> &[(String, Option<Arc<DeviceFunction>>)] {
        &self.functions
    }

    /// The integer of that name.
    pub fn int(&self, name: &str) -> Option<i64> {
        int_of(&self.values, name)
    }

    /// The element type of that name.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        self.values.iter().find_map(|(known, value)| match value {
            Value::DType(dtype) if known == name => Some(*dtype),
            _ => None,
        })
    }
}

fn int_of(values: &[(String, Value)], name: &str) -> Option<i64> {
    values.iter().find_map(|(known, value)| match value {
        Value::Int(int) if known == name => Some(*int),
        _ => None,
    })
}

/// The value that a parameter has where none is given, of those above it.
fn default_of(param: &SpecParam, above: &[(String, Value)]) -> Option<Value> {
    let default = param.default.as_ref()?;
    default.eval(&|name| int_of(above, name)).ok().map(Value::Int)
}
