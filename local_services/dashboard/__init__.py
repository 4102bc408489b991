"""The dashboard: orchestrations and agents' conversations in a browser, read with the scheduler's public client.

The pages use NiceGUI: it ships all its assets, updates single elements of an open page over one websocket, and contains
Mermaid. The alternatives: Streamlit runs the whole script again at each change, Dash sends a request for each update
and has no Mermaid, Panel needs Bokeh and pandas, Reflex needs Node.js to build.

scheduler.py reads and acts; conversation.py, history.py and approval.py interpret what was read, words.py formats it;
overview.py, orchestration.py with review.py and actions.py, and session.py are the pages; frame.py has what all pages
share; guard.py refuses requests of other web pages.
"""
