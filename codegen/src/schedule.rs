//! How it is computed: one point of a body's tuning space.

use crate::arch::{Arch, Family};
use crate::dsl::Body;
use serde::{Deserialize, Serialize};
use std::fmt;

/// *How* a spec is run: the body and a value for each of its tuning parameters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Schedule {
    /// The body.
    pub family: Family,
    /// Tuning parameters in the declaration's order.
    pub values: Vec<(String, i64)>,
}

impl Schedule {
    /// The value of a tuning parameter.
    pub fn get(&self, name: &str) -> Option<i64> {
        self.values.iter().find_map(|(known, value)| (known == name).then_some(*value))
    }

    /// Every point of the body's tuning space on an architecture, the preferred first: values keep their order and the first
    /// parameter changes slowest.
    pub(crate) fn enumerate(body: &Body, arch: Arch) -> Vec<Schedule> {
        let mut points = vec![Vec::new()];
        for param in body.tune_for(arch) {
            points = points
                .into_iter()
                .flat_map(|point: Vec<(String, i64)>| {
                    param.values.iter().map(move |value| {
                        let mut longer = point.clone();
                        longer.push((param.name.clone(), *value));
                        longer
                    })
                })
                .collect();
        }
        points.into_iter().map(|values| Schedule { family: body.family, values }).collect()
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.family.name())?;
        self.values.iter().try_for_each(|(name, value)| write!(f, " {}={value}", name.to_lowercase()))
    }
}
