#!/usr/bin/perl
# Regular expressions for workflows: find, replace, split. Core Perl only.
use strict;
use warnings;
use JSON::PP;

my %text    = (id => 'text',    type => 'str', required => JSON::PP::true);
my %pattern = (id => 'pattern', type => 'str', required => JSON::PP::true, description => 'A Perl regular expression');

my @commands = (
    {name => 'Find', description => 'All matches, with their groups', parameters => [\%text, \%pattern]},
    {   name        => 'Replace',
        description => 'Replace every match; $1 in the replacement is the first group',
        parameters  => [\%text, \%pattern, {id => 'replacement', type => 'str', required => JSON::PP::true}],
    },
    {name => 'Split', description => 'The pieces between the matches', parameters => [\%text, \%pattern]},
);

sub failure { return {error => {error_code => $_[0], message => $_[1]}} }

sub filled {    # the replacement with $1, $2 ... filled in
    my ($replacement, @groups) = @_;
    $replacement =~ s/\$(\d)/$groups[$1 - 1] \/\/ ''/ge;
    return $replacement;
}

sub answer {
    my ($request) = @_;
    return {commands => \@commands} if $request->{op} eq 'describe';
    my ($text, $pattern) = @{$request->{params}}{qw(text pattern)};
    my $compiled = eval { qr/$pattern/ } or return failure('bad_pattern', $@);
    if ($request->{command} eq 'Find') {
        my @matches;
        while ($text =~ /$compiled/g) {
            my @groups = map { substr $text, $-[$_], $+[$_] - $-[$_] } grep { defined $-[$_] } 1 .. $#-;
            push @matches, {match => $&, at => $-[0], groups => \@groups};
        }
        return {matches => \@matches};
    }
    if ($request->{command} eq 'Replace') {
        my $replacement = $request->{params}{replacement};
        my $count = $text =~ s/$compiled/filled($replacement, map { defined $-[$_] ? substr($text, $-[$_], $+[$_] - $-[$_]) : '' } 1 .. $#-)/ge;
        return {text => $text, count => $count || 0};
    }
    return {pieces => [split $compiled, $text, -1]} if $request->{command} eq 'Split';
    return failure('command_not_found', 'it has Find, Replace and Split');
}

my $json = JSON::PP->new->utf8->canonical;
print $json->encode(answer($json->decode(do { local $/; <STDIN> })));
