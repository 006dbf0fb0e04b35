//! Chat templates, rendered by minijinja as transformers' `apply_chat_template` renders them by jinja2.

use std::fmt;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};

use crate::ffi::{self, Failure, Text};
use crate::{python, tojson};

const NAME: &str = "chat_template";

/// `tandem_template`
pub struct Template {
    environment: Environment<'static>,
}

impl Template {
    fn new(source: &str, fuel: u64) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_fuel(Some(fuel));
        minijinja_contrib::add_to_environment(&mut environment);
        environment.set_unknown_method_callback(python::method);
        environment.add_test("sequence", python::is_sequence);
        environment.add_test("iterable", python::is_iterable);
        environment.add_filter("tojson", tojson::tojson);
        environment.add_function("strftime_now", python::strftime_now);
        environment.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
            let raised = Raised(message.to_string());
            Err(Error::new(ErrorKind::InvalidOperation, "raised").with_source(raised))
        });
        environment.add_template_owned(NAME, without_generation_tags(&source.replace("\r\n", "\n")))?;
        Ok(Template { environment })
    }

    fn render(&self, variables: &str) -> ffi::Result<String> {
        let variables: Value = serde_json::from_str(variables)?;
        let template = self.environment.get_template(NAME).map_err(explain)?;
        template.render(variables).map_err(explain)
    }
}

/// What the template said through `raise_exception`.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "the template refuses: {}", self.0)
    }
}

impl std::error::Error for Raised {}

/// The template's own words where it raised, or else what failed at which line, innermost cause last.
fn explain(error: Error) -> Failure {
    let mut text = match (error.line(), error.detail()) {
        (Some(line), Some(detail)) => format!("line {line}: {}: {detail}", error.kind()),
        (Some(line), None) => format!("line {line}: {}", error.kind()),
        (None, _) => error.to_string(),
    };
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        if inner.is::<Raised>() {
            return inner.to_string().into();
        }
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text.into()
}

/// `{% generation %}` marks the assistant's text for training masks; to a prompt it is a scope and no more.
fn without_generation_tags(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        result.push_str(before);
        let body = tag.trim_start_matches(['-', '+']).trim_start();
        result.push_str(&tag[..tag.len() - body.len()]);
        let word = body.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
        let after = &body[word.len()..];
        let closes = after.trim_start().trim_start_matches(['-', '+']).starts_with("%}");
        result.push_str(match word {
            "generation" if closes => "with",
            "endgeneration" if closes => "endwith",
            _ => word,
        });
        rest = after;
    }
    result + rest
}

#[no_mangle]
pub unsafe extern "C" fn tandem_template_new(
    source: *const u8,
    size: usize,
    fuel: u64,
    out: *mut Text,
) -> *mut Template {
    ffi::object(out, || Template::new(ffi::text(source, size)?, fuel).map_err(explain))
}

#[no_mangle]
pub unsafe extern "C" fn tandem_template_free(template: *mut Template) {
    ffi::free_object(template);
}

#[no_mangle]
pub unsafe extern "C" fn tandem_template_render(
    template: *const Template,
    variables: *const u8,
    size: usize,
    out: *mut Text,
) -> bool {
    ffi::answer(out, || (*template).render(ffi::text(variables, size)?))
}
