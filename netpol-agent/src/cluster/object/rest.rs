//! What is left of a policy of which something cannot be read.
//!
//! A policy allows what its rules name; everything else it forbids to the pods that it selects. So without the peer, port or rule that
//! cannot be read it allows less, never more, and that is better than no policy, which would leave its pods open. What says whom it
//! selects, and for which directions, cannot be left out.

use serde_json::{Value, json};

use super::{Kind, Object, ObjectKey, Unknown, whole};

/// So many mistakes are left out one by one; of a policy that has more all rules are.
const MISTAKES: usize = 32;

/// The policy without what is at this field, and whatever else cannot be read. `None` if that leaves no policy.
pub(super) fn of(
    key: &ObjectKey,
    mut policy: Value,
    unknown: Unknown,
    field: &str,
) -> Option<Object> {
    name_types(policy.get_mut("spec")?)?;
    let mut field = field.to_owned();
    for _ in 0..MISTAKES {
        leave_out(policy.get_mut("spec")?, &field)?;
        match whole(Kind::NetworkPolicy, key, policy.clone(), unknown) {
            Ok(object) => return Some(object),
            Err(refusal) => field = refusal.field,
        }
    }
    for direction in ["ingress", "egress"] {
        policy["spec"][direction] = json!([]);
    }
    whole(Kind::NetworkPolicy, key, policy, unknown).ok()
}

/// Writes down the directions that follow from the rules, before some of these go.
fn name_types(spec: &mut Value) -> Option<()> {
    let is_given = |value: Option<&Value>| {
        value
            .is_some_and(|value| !value.is_null() && value.as_array().is_none_or(|a| !a.is_empty()))
    };
    if !is_given(spec.get("policyTypes")) {
        let types = if is_given(spec.get("egress")) {
            json!(["Ingress", "Egress"])
        } else {
            json!(["Ingress"])
        };
        spec.as_object_mut()?.insert("policyTypes".into(), types);
    }
    Some(())
}

/// Takes out the peer or port in which a field lies, or the rule: without its last peer or port a rule would be for all of them.
/// `None` if the field lies in none.
fn leave_out(spec: &mut Value, field: &str) -> Option<()> {
    let field = field.strip_prefix("spec.")?;
    let (direction, list) = ["ingress", "egress"]
        .into_iter()
        .find_map(|direction| Some((direction, field.strip_prefix(direction)?)))?;
    let rules = spec.get_mut(direction)?;
    let (Some(rules), Some((at, inner))) = (rules.as_array_mut(), index(list)) else {
        // What is no list of rules has none.
        return list.is_empty().then(|| *rules = json!([]));
    };
    let rule = rules.get_mut(at)?;
    let item = ["from", "to", "ports"].into_iter().find_map(|name| {
        let (at, _) = index(inner.strip_prefix('.')?.strip_prefix(name)?)?;
        Some((name, at))
    });
    if let Some((name, item)) = item
        && let Some(items) = rule.get_mut(name).and_then(Value::as_array_mut)
        && items.len() > 1
        && item < items.len()
    {
        items.remove(item);
    } else {
        rules.remove(at);
    }
    Some(())
}

/// `[3].from` as 3 and `.from`.
fn index(text: &str) -> Option<(usize, &str)> {
    let (number, rest) = text.strip_prefix('[')?.split_once(']')?;
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests;
