//! Puts options and signature together, and checks that no two calls that differ get one key.

use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::{Expr, Ident, ItemFn, Receiver};

use crate::near;
use crate::options::{KeyOption, Options, mentions};
use crate::signature::{
    Argument, Errors, ParameterKind, Returned, arguments, parameters, returned,
};
use crate::uses;

/// Everything that is known of a function to be cached.
pub(crate) struct Plan {
    pub(crate) options: Options,
    pub(crate) function: ItemFn,
    pub(crate) receiver: Option<Receiver>,
    pub(crate) arguments: Vec<Argument>,
    pub(crate) parameters: Vec<(Ident, ParameterKind)>,
    pub(crate) returned: Returned,
    /// Whether it stands in an `impl` block.
    pub(crate) associated: bool,
}

impl Plan {
    pub(crate) fn new(options: Options, function: ItemFn) -> syn::Result<Self> {
        check_kind(&function)?;
        let parameters = parameters(&function);
        let (arguments, returned) = match (arguments(&function), returned(&function)) {
            (Ok(arguments), Ok(returned)) => (arguments, returned),
            (Err(mut error), Err(other)) => {
                error.combine(other);
                return Err(error);
            }
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        let mut errors = Errors::default();
        let (receiver, arguments) = arguments;
        let associated = options.associated || receiver.is_some() || names_self(&function);
        let plan = Self {
            options,
            function,
            receiver,
            arguments,
            parameters,
            returned,
            associated,
        };
        plan.check_names(&mut errors);
        plan.check_key(&mut errors);
        plan.check_sense(&mut errors);
        errors.or(plan)
    }

    /// Whether a name is an argument, a part of one, `self` or a parameter.
    fn knows(&self, name: &Ident) -> bool {
        self.all_names().iter().any(|known| name == known)
    }

    /// The names of everything that calls can differ in.
    fn all_names(&self) -> Vec<String> {
        let own = self.receiver.iter().map(|_| "self".to_owned());
        let arguments = self.arguments.iter().flat_map(|argument| &argument.names);
        let parameters = self.parameters.iter().map(|(name, _)| name);
        own.chain(arguments.chain(parameters).map(Ident::to_string))
            .collect()
    }

    fn check_names(&self, errors: &mut Errors) {
        let known = self.all_names();
        for template in self.templates() {
            for field in template.fields().filter(|field| !self.knows(&field.root)) {
                let root = field.root.to_string();
                let near = near::offer(&root, &known);
                let message = format!("there is no argument `{root}`{near}");
                errors.add(template.literal.span(), message);
            }
        }
        for ignored in self.options.ignore.iter().filter(|name| !self.knows(name)) {
            let near = near::offer(&ignored.to_string(), &known);
            errors.add(
                ignored.span(),
                format!("there is no argument `{ignored}`{near}"),
            );
        }
    }

    fn templates(&self) -> impl Iterator<Item = &crate::template::Template> {
        let key = match &self.options.key {
            Some(KeyOption::Template(template)) => Some(template),
            _ => None,
        };
        key.into_iter().chain(&self.options.tags)
    }

    /// What calls differ in must be in the key, or be ignored on purpose.
    fn check_key(&self, errors: &mut Errors) {
        for argument in &self.arguments {
            for name in &argument.names {
                self.check_in_key(name, errors);
            }
        }
        if let Some(receiver) = &self.receiver {
            self.check_self(receiver, errors);
        }
        // The path of the function tells them apart where it is in the key.
        if self.options.cache.is_some() && self.options.key.is_some() {
            for (name, kind) in &self.parameters {
                if !self.is_ignored(name) && !self.is_in_key(name) {
                    errors.add(name.span(), unkeyed_parameter(name, *kind));
                }
            }
        }
    }

    fn check_in_key(&self, name: &Ident, errors: &mut Errors) {
        let (ignored, in_key) = (self.is_ignored(name), self.is_in_key(name));
        match (&self.options.key, ignored, in_key) {
            (Some(_), true, true) => {
                let message = format!("`{name}` is in the key, and under `ignore` as well");
                errors.add(name.span(), message);
            }
            (Some(key), false, false) if !self.is_the_cache(name) => {
                let into = match key {
                    KeyOption::Template(_) => format!("`{{{name}}}` into the key"),
                    KeyOption::Expression(_) => "it into the key".to_owned(),
                };
                errors.add(
                    name.span(),
                    format!(
                        "`{name}` is not in the key, so a call with another `{name}` would get the \
                         result of this one; write {into}, or `ignore = [{name}]` if the result \
                         does not depend on it"
                    ),
                );
            }
            _ => {}
        }
    }

    fn check_self(&self, receiver: &Receiver, errors: &mut Errors) {
        let own = Ident::new("self", receiver.self_token.span);
        let is_its_cache = |cache: &Expr| uses::reads(cache, "self");
        let told_apart = self.is_ignored(&own)
            || (self.options.key.is_some() && self.is_in_key(&own))
            || self.options.cache.as_ref().is_some_and(is_its_cache);
        if !told_apart {
            errors.add(
                own.span(),
                "`self` is not in the key, so a call on another value would get the result of this \
                 one; name a cache of its own, `cache = self.field`, write what tells two of them \
                 apart into the key, `{self.field}`, or write `ignore = [self]` if the result does \
                 not depend on it"
                    .to_owned(),
            );
        }
    }

    pub(crate) fn is_ignored(&self, name: &Ident) -> bool {
        self.options.ignore.iter().any(|ignored| ignored == name)
    }

    /// Whether the argument is the cache itself.
    fn is_the_cache(&self, name: &Ident) -> bool {
        let cache = self.options.cache.as_ref();
        cache.is_some_and(|cache| match cache {
            Expr::Reference(reference) => is_just(&reference.expr, name),
            cache => is_just(cache, name),
        })
    }

    /// Whether the key is made of this, among other things.
    pub(crate) fn is_in_key(&self, name: &Ident) -> bool {
        match &self.options.key {
            Some(KeyOption::Template(template)) => {
                template.fields().any(|field| field.root == *name)
            }
            Some(KeyOption::Expression(key)) => {
                let is_parameter = self.parameters.iter().any(|(known, _)| known == name);
                let uses = if is_parameter {
                    uses::names_parameter
                } else {
                    uses::reads
                };
                uses(key, &name.to_string())
            }
            None => name != "self" && !self.is_ignored(name) && !self.is_the_cache(name),
        }
    }

    /// Whether the companions that find the cache need this.
    pub(crate) fn finds_cache(&self, name: &Ident) -> bool {
        let cache = self.options.cache.as_ref();
        cache.is_some_and(|cache| uses::reads(cache, &name.to_string()))
    }

    /// Options that have no meaning for this function.
    fn check_sense(&self, errors: &mut Errors) {
        if let Some(negative) = self
            .options
            .negative
            .as_ref()
            .filter(|_| !self.returned.optional)
        {
            errors.add(
                negative.span,
                "`negative` is how long \"there is no such value\" is remembered, and this function \
                 has no word for it; return an `Option`"
                    .to_owned(),
            );
        }
        let waits = self.function.sig.asyncness.is_some() || self.returned.fails;
        if let Some(grace) = self.options.grace.as_ref().filter(|_| !waits) {
            errors.add(
                grace.span,
                "`grace` is for functions that are async, which it refreshes in the background, or \
                 that can fail, whose errors it stands in for; this one is neither"
                    .to_owned(),
            );
        }
    }
}

fn is_just(expression: &Expr, name: &Ident) -> bool {
    matches!(expression, Expr::Path(path) if path.path.is_ident(name))
}

fn unkeyed_parameter(name: &Ident, kind: ParameterKind) -> String {
    let what = match kind {
        ParameterKind::Type => "the name of the type",
        ParameterKind::Const => "its value",
    };
    format!(
        "`{name}` is not in the key, so a call for another `{name}` would get the result of this \
         one; write `{{{name}}}`, which is {what}, into the key, leave `key` out, or write `ignore = \
         [{name}]` if the result does not depend on it"
    )
}

/// An error for functions that are not called like others.
fn check_kind(function: &ItemFn) -> syn::Result<()> {
    let sig = &function.sig;
    if let Some(constness) = &sig.constness {
        let message = "a const fn has no cache at compile time; leave `const` out";
        return Err(syn::Error::new_spanned(constness, message));
    }
    if let Some(unsafety) = &sig.unsafety {
        let message = "what an unsafe fn asks of its caller cannot be asked of a cache; wrap it in a safe function";
        return Err(syn::Error::new_spanned(unsafety, message));
    }
    if let Some(abi) = &sig.abi {
        let message = "a function for other languages cannot be cached; wrap it in one that is";
        return Err(syn::Error::new_spanned(abi, message));
    }
    Ok(())
}

/// Whether a function can only stand in an `impl` block, because it says `Self`.
fn names_self(function: &ItemFn) -> bool {
    let says = |tokens: TokenStream| mentions(tokens, "Self");
    let block = function.block.to_token_stream();
    // Items inside of a body have a `Self` of their own.
    let has_items = ["impl", "trait"]
        .iter()
        .any(|item| mentions(block.clone(), item));
    says(function.sig.to_token_stream()) || (says(block) && !has_items)
}
